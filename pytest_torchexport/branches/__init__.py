"""Which branches of the user's code an input takes, and the search for inputs that take the others."""
