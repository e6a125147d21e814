"""How fast sampling, training and likelihood are, beside what the machine could do."""
