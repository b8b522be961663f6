"""Selection and variation of populations: operators for one individual, indices for all."""
