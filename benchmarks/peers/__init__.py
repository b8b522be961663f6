"""Other libraries' trainers, reduced to the loop that is compared."""
