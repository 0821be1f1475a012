"""Asks Microsoft's own azure-identity for tokens, as an application in a pod would, and prints each answer as one line of JSON.

Usage: get_token.py managed|default RESOURCE [CLIENT_ID]

Asks once for every line read from standard input (`{"token": …, "expires_on": …}` or `{"error": …}`), for the resource
that the line names, else for RESOURCE, each time with a new credential, since a credential keeps its tokens to itself.
The process stays the same: nothing is restarted.
"""

import json
import logging
import sys

from azure.identity import DefaultAzureCredential, ManagedIdentityCredential


def credential(kind, client_id):
    if kind == "managed":
        return ManagedIdentityCredential(client_id=client_id) if client_id else ManagedIdentityCredential()
    return DefaultAzureCredential(managed_identity_client_id=client_id) if client_id else DefaultAzureCredential()


def main():
    # The error says the same; a line of the log between the answers helps nobody.
    logging.getLogger("azure").addHandler(logging.NullHandler())
    kind, resource = sys.argv[1], sys.argv[2]
    client_id = sys.argv[3] if len(sys.argv) > 3 else None
    for line in sys.stdin:
        try:
            with credential(kind, client_id) as asking:
                token = asking.get_token((line.strip() or resource).rstrip("/") + "/.default")
            answer = {"token": token.token, "expires_on": token.expires_on}
        except Exception as error:  # whatever the SDK raises is what the application would see
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


main()
