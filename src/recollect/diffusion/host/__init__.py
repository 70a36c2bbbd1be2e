"""The only place where diffusers' API appears: calls, blocks, hooks."""
