"""An agent that knows nothing of Patchwright but two endpoints: it asks the policy, runs what it
says, and submits. Only the standard library."""

import json
import os
import sys
import urllib.error
import urllib.request

# The endpoint is on this machine: whatever proxy the environment names is not asked.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
HEADERS = {
    "authorization": "Bearer " + os.environ["OPENAI_API_KEY"],
    "content-type": "application/json",
}


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), HEADERS)
    with OPENER.open(request) as response:
        return json.load(response)


messages = [{"role": "user", "content": os.environ["PATCHWRIGHT_TASK"]}]
try:
    while True:
        asked = {"model": os.environ["PATCHWRIGHT_MODEL"], "messages": messages}
        answer = post(os.environ["OPENAI_BASE_URL"] + "/chat/completions", asked)
        said = answer["choices"][0]["message"]["content"]
        if said.strip() == "submit":
            break
        done = post(os.environ["PATCHWRIGHT_GATEWAY"] + "/episode/exec", {"command": said})
        messages.append({"role": "assistant", "content": said})
        messages.append({"role": "user", "content": done["output"]})
except urllib.error.HTTPError as error:
    sys.exit(f"{error}: {error.read().decode()}")
