"""Published Robometer weights made ready to serve: checked by their headers, asked in an installed package's words."""
