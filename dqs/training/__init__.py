"""Training of the default models from given data, with a fixed seed. Serving never imports this."""
