"""What deepzero is used for, each as one function of a frozen configuration."""
