"""The subcommands of `trimtab`, one module a family; each wires a service or calls one over HTTP."""

__all__: list[str] = []
