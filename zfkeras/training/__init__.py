"""Training networks with the paper's recipe (section 3)."""
