"""A night's memories: read from a folder, checked, masked, freed of duplicates, and packed for the model."""
