"""The pages for people: one sign-in, each role its own pages. Server-rendered; they work without JavaScript.

`console.install(app)` is called by `hie.app` once `app.extensions["hie"]` holds the services; `console.problem_page`
turns an error into a page where a person is looking.
"""
