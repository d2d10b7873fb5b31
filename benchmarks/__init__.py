"""What the README's figures come from; each script runs alone and writes its own table."""
