"""Tasks, a package each: a function of a frozen configuration that fills the folder of a run."""
