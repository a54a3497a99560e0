"""The front door: the command line, the settings, the stack on one machine, the demo; it wires all other packages."""

__all__: list[str] = []
