"""The doing: surgery, engines, plans and modes."""
