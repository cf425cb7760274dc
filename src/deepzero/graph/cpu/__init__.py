"""Compiled loops of difference rules on a CPU: they replace the body of a rule, never its meaning."""
