"""The network's own parts: loss, published weights, freezing, size and cost."""
