"""Studies: methods x tasks x seeds as one command, with a table and a plot at the end."""
