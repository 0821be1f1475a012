"""Asks Microsoft's own Python clients for tokens, as an application in a pod would.

Usage: client.py azure-identity|azure-identity-aio|msal

Prints `{"version": …}` when the client is loaded, then one answer a line for every question a line:
`{"resource", "kind": "managed"|"default", "client_id"|"resource_id"|"object_id"}` is answered by
`{"token", "expires_on", "ms"}` or `{"error", "ms"}`; `{"unsupported"}` where the client has no way to ask so. Each question
is asked with a new credential, since a credential keeps its tokens to itself; the process stays the same.
"""

import asyncio
import importlib.metadata
import json
import logging
import sys
import time


def identity(question):
    """The one identifier in a question, with its name; nothing when there is none."""
    return {name: question[name] for name in ("client_id", "resource_id", "object_id") if question.get(name)}


def keywords(question, resource_id):
    """What azure-identity wants: the client id by name, any other identifier as `identity_config`."""
    config = identity(question)
    if "client_id" in config:
        return config
    if "resource_id" in config:
        config = {resource_id: config["resource_id"]}
    return {"identity_config": config} if config else {}


def default_keywords(question):
    client_id = question.get("client_id")
    return {"managed_identity_client_id": client_id} if client_id else {}


def azure_identity():
    from azure.identity import DefaultAzureCredential, ManagedIdentityCredential

    def ask(question):
        if question.get("kind") == "default":
            credential = DefaultAzureCredential(**default_keywords(question))
        else:
            credential = ManagedIdentityCredential(**keywords(question, "resource_id"))
        with credential:
            token = credential.get_token(question["resource"] + "/.default")
        return {"token": token.token, "expires_on": token.expires_on}

    return "azure-identity", ask


def azure_identity_aio():
    from azure.identity.aio import DefaultAzureCredential, ManagedIdentityCredential

    loop = asyncio.new_event_loop()

    async def get(question):
        if question.get("kind") == "default":
            credential = DefaultAzureCredential(**default_keywords(question))
        else:
            # This one sends the name as it is given; the endpoint's own is msi_res_id.
            credential = ManagedIdentityCredential(**keywords(question, "msi_res_id"))
        async with credential:
            token = await credential.get_token(question["resource"] + "/.default")
        return {"token": token.token, "expires_on": token.expires_on}

    return "azure-identity", lambda question: loop.run_until_complete(get(question))


def msal_client():
    import msal
    import requests

    def ask(question):
        if question.get("kind") == "default":
            return {"unsupported": "MSAL has no DefaultAzureCredential"}
        config = identity(question)
        target = msal.UserAssignedManagedIdentity(**config) if config else msal.SystemAssignedManagedIdentity()
        with requests.Session() as session:
            client = msal.ManagedIdentityClient(target, http_client=session)
            answer = client.acquire_token_for_client(resource=question["resource"])
        if "access_token" not in answer:
            return {"error": f"{answer.get('error')}: {answer.get('error_description')}"}
        return {"token": answer["access_token"], "expires_on": int(time.time()) + int(answer["expires_in"])}

    return "msal", ask


CLIENTS = {"azure-identity": azure_identity, "azure-identity-aio": azure_identity_aio, "msal": msal_client}


def main():
    # The error says the same; a line of the log between the answers helps nobody.
    logging.getLogger("azure").addHandler(logging.NullHandler())
    package, ask = CLIENTS[sys.argv[1]]()
    print(json.dumps({"version": importlib.metadata.version(package)}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        begin = time.monotonic()
        try:
            answer = ask(question)
        except Exception as error:  # whatever the client raises is what the application would see
            answer = {"error": f"{type(error).__name__}: {error}"}
        answer["ms"] = round((time.monotonic() - begin) * 1000)
        print(json.dumps(answer), flush=True)


main()
