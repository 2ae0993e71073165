"""The application on the driver: annotations to slots, slots to a plan, the plan through Ray, rows into the index."""

__version__ = "0.1.0"
