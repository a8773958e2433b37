//! What the machine has of what overspill needs, and how to get the rest.
