"""The reference models: three objects modelled in code, their renders, training and evaluation."""
