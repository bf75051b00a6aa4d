"""FixMatch (Sohn et al. 2020): confident pseudo-labels of weakly augmented images teach strongly augmented ones."""
