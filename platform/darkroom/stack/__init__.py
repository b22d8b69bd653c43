"""What runs Darkroom on one machine. Imports nothing here: a web host uses the leash and has no supervisor."""
