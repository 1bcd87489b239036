"""Serving: a queue of requests, an HTTP endpoint for programs, and the limits of both.

limits            sizes of uploads and texts, rates, and what is checked before anything is decoded
prediction_queue  puts requests of several threads into batches; `prediction_requests` are what
                  it takes and refuses
fields            the JSON fields of the endpoint, in and out; `schemas` describe them
http_app          the endpoint `POST /predict`
http_guards       the host, the size and the rate of requests, before they are read
api_page          the page that describes the endpoint
server            runs an application until it is stopped, and then answers what it accepted
demo_page         the page in the browser, over the same queue
demo_answers      its answers as HTML
demo_server       what `ofa-demo` runs
page_examples     questions to begin with, from the run's galleries
page_guard        what of Gradio is served
uploads           the images on the page
"""
