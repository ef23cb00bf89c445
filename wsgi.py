"""gunicorn starts here: `gunicorn wsgi:app`, or `hie serve`."""

from hie.app import create_app

app = create_app()
