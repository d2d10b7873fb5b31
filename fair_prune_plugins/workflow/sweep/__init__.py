"""Many runs as one NNI experiment: all criteria, amounts and losses of a configuration over seeds, or a search."""
