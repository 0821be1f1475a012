// Asks Microsoft's own @azure/identity for tokens, as an application in a pod would, and prints each answer as one line
// of JSON.
//
// Usage: get_token.mjs managed|default RESOURCE [CLIENT_ID]
//
// Asks once for every line read from standard input ({"token", "expires_on"} or {"error"}), for the resource that the line
// names, else for RESOURCE, each time with a new credential. The process stays the same: nothing is restarted. (This SDK
// keeps the tokens of a resource for all credentials of the process until they expire.)

import { createInterface } from "node:readline";
import { DefaultAzureCredential, ManagedIdentityCredential } from "@azure/identity";

const [kind, resource, clientId] = process.argv.slice(2);

function credential() {
  if (kind === "managed") {
    return clientId ? new ManagedIdentityCredential({ clientId }) : new ManagedIdentityCredential();
  }
  return new DefaultAzureCredential(clientId ? { managedIdentityClientId: clientId } : {});
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const token = await credential().getToken((line || resource).replace(/\/$/, "") + "/.default");
    answer = { token: token.token, expires_on: Math.floor(token.expiresOnTimestamp / 1000) };
  } catch (error) {
    answer = { error: `${error.name}: ${error.message}` };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
