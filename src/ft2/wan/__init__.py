"""The Wan talking-video model: transformer, encoders, codec, and the bundle that joins them."""
