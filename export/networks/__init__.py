"""The few networks that all systems share, each an nn.Module built from plain arguments."""
