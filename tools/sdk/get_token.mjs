// Asks Microsoft's own @azure/identity for tokens, as an application in a pod would, and prints each answer as one line
// of JSON.
//
// Usage: get_token.mjs managed|default RESOURCE [CLIENT_ID]
//
// Asks once for every line read from standard input ({"token", "expires_on"} or {"error"}), each time with a new
// credential, since a credential keeps its tokens to itself. The process stays the same: nothing is restarted.

import { createInterface } from "node:readline";
import { DefaultAzureCredential, ManagedIdentityCredential } from "@azure/identity";

const [kind, resource, clientId] = process.argv.slice(2);

function credential() {
  if (kind === "managed") {
    return clientId ? new ManagedIdentityCredential({ clientId }) : new ManagedIdentityCredential();
  }
  return new DefaultAzureCredential(clientId ? { managedIdentityClientId: clientId } : {});
}

for await (const _ of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const token = await credential().getToken(resource.replace(/\/$/, "") + "/.default");
    answer = { token: token.token, expires_on: Math.floor(token.expiresOnTimestamp / 1000) };
  } catch (error) {
    answer = { error: `${error.name}: ${error.message}` };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
