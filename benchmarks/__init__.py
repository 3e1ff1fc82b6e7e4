"""The instruments: pose error, accuracy, latency, machine. They never see how a model was made."""
