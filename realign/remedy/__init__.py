"""The cures: recipes as content, the kinds of remedies that apply them, and the certificate that proves them."""
