"""A local web page that scores a clip which a person drops on it: python -m training.judge_page --run runs/NAME.

`app` has the routes and their guards, `forms` reads uploads, `clips` holds them, `worker` is the queue and the one process that
opens the files, `judging` and `run_judge` are what this process does. The page's own process never decodes a file and imports no torch.
"""
