"""Keys and values of tokens that do not run on a step: conditions, references, other regions."""
