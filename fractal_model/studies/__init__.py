"""Studies: variants of a recipe, trained over several seeds, measured and compared."""
