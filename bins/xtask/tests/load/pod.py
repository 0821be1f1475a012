"""What an application in a pod does that needs tokens all the time: one kept connection, requests due at fixed instants
whatever became of those before ("open loop"). Ends when its input ends, and says then what it saw.

Arguments: requests a second, seconds until the first, path and query.
"""

import base64
import http.client
import json
import sys
import threading
import time

rate, first, path = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
ended = threading.Event()


def until_told():
    sys.stdin.read()
    ended.set()


threading.Thread(target=until_told, daemon=True).start()

last_failure = None
asked, failures, failed, times, tokens, connections = 0, [], 0, [], {}, 0
connection = None
least_life = None
began = time.monotonic() + first
while True:
    due = began + asked / rate
    if ended.wait(max(0.0, due - time.monotonic())):
        break
    asked += 1
    problem = None
    try:
        if connection is None:
            connection = http.client.HTTPConnection("169.254.169.254", 80, timeout=15)
            connections += 1
        connection.request("GET", path, headers={"Metadata": "true"})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status == 200:
            token = json.loads(body)
            now = time.time()
            life = int(token["expires_on"]) - now
            least_life = life if least_life is None else min(least_life, life)
            if life <= 0:
                problem = "a token that has ended: %s" % token["expires_on"]
            text = token["access_token"]
            if text not in tokens:
                payload = text.split(".")[1]
                claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
                tokens[text] = {"at": now, "application": claims.get("appid"), "ends": int(token["expires_on"])}
        else:
            problem = "%d %s" % (answer.status, body.decode(errors="replace")[:400])
    except Exception as error:  # whatever it is, the application has no token
        problem = repr(error)
        connection = None
    times.append(time.monotonic() - due)
    if problem is not None:
        failed += 1
        last_failure = time.time()
        if len(failures) < 20:
            failures.append({"at": time.time(), "problem": problem})

times.sort()
json.dump(
    {
        "asked": asked,
        "failed": failed,
        "failures": failures,
        "lastFailure": last_failure,
        "connections": connections,
        "leastLife": least_life,
        "p50": times[len(times) // 2] if times else 0,
        "p99": times[len(times) * 99 // 100] if times else 0,
        "longest": times[-1] if times else 0,
        "tokens": [dict(token, token=text) for text, token in tokens.items()],
    },
    sys.stdout,
)
