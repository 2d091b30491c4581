"""The one number that must be right: from pattern energies to the dataset-level intensity scale."""
