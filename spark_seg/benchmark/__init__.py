"""What parts of the product cost, measured; one module per part, each with `add_options` and `main`."""
