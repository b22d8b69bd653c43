"""The pages that people read, one module each. They work with JavaScript off.

A view reads HTTP, makes one call, writes HTTP; what a page says of a job is put into words in wording.py.
"""

from darkroom.web.pages import form, gallery, job

BLUEPRINTS = (form.blueprint, job.blueprint, gallery.blueprint)

__all__ = ["BLUEPRINTS"]
