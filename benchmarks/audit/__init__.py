"""How good is what the dense network alone foretells? Measured on real faces."""
