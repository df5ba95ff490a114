"""Networks that this project trains from scratch; architectures that others published come through spandrel."""
