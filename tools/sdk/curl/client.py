"""Asks the endpoint with curl, as the documentation's walkthrough does; the form of questions and answers is that of
../python/client.py.
"""

import json
import subprocess
import sys
import time

URL = "http://169.254.169.254/metadata/identity/oauth2/token"
NAMES = {"client_id": "client_id", "resource_id": "msi_res_id", "object_id": "object_id"}


def ask(question):
    if question.get("kind") == "default":
        return {"unsupported": "curl has no DefaultAzureCredential"}
    parameters = [("api-version", "2018-02-01"), ("resource", question["resource"])]
    parameters += [(NAMES[name], question[name]) for name in NAMES if question.get(name)]
    command = ["curl", "-sS", "--max-time", "60", "-w", "\n%{http_code}", "--get", "-H", "Metadata:true", URL]
    for name, value in parameters:
        command += ["--data-urlencode", f"{name}={value}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    body, _, status = done.stdout.rpartition("\n")
    if done.returncode != 0:
        return {"error": done.stderr.strip()}
    if status != "200":
        return {"error": f"{status} {body}"}
    answer = json.loads(body)
    return {"token": answer["access_token"], "expires_on": int(answer["expires_on"])}


def main():
    version = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    print(json.dumps({"version": version}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        begin = time.monotonic()
        try:
            answer = ask(question)
        except (KeyError, ValueError) as error:  # 200 and yet no token
            answer = {"error": f"{type(error).__name__}: {error}"}
        answer["ms"] = round((time.monotonic() - begin) * 1000)
        print(json.dumps(answer), flush=True)


main()
