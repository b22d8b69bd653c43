"""Run as a program: serves a measured application on Darkroom's own server, with the environment's settings."""

import sys

import bare_app
import reference_app

from darkroom import server
from darkroom.config import load_settings

if __name__ == "__main__":
    settings = load_settings()
    match sys.argv[1]:
        case "darkroom":
            server.serve(settings)
        case "bare":
            server.serve_app(settings, bare_app.load)
        case "reference":
            server.serve_app(settings, reference_app.load)
