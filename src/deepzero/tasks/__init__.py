"""Tasks: classification, defense of a classifier, correction of a solver, each a function of a frozen configuration."""
