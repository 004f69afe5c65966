"""People at the services' HTTP interfaces: roles, what each may do where, and the guard that sees to it."""
