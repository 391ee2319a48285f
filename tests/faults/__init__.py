"""The fault battery: what peers do wrong, and that a real server and its other clients stand it."""
