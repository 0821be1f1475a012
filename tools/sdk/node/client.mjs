// Asks Microsoft's own clients for Node.js for tokens, as an application in a pod would.
//
// Usage: client.mjs azure-identity|msal-node
//
// Prints {"version"} when the client is loaded, then one answer a line for every question a line (python/client.py tells
// the form). Each question is asked with a new credential; the process stays the same. (Both clients keep the tokens of a
// resource for all credentials of the process until they expire: ask for another resource to make them ask again.)

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const clients = {
  "azure-identity": async () => {
    const { DefaultAzureCredential, ManagedIdentityCredential } = await import("@azure/identity");
    return ["@azure/identity", async ({ resource, kind, client_id, resource_id, object_id }) => {
      let credential;
      if (kind === "default") {
        credential = new DefaultAzureCredential(client_id ? { managedIdentityClientId: client_id } : {});
      } else if (client_id) {
        credential = new ManagedIdentityCredential({ clientId: client_id });
      } else if (resource_id) {
        credential = new ManagedIdentityCredential({ resourceId: resource_id });
      } else if (object_id) {
        credential = new ManagedIdentityCredential({ objectId: object_id });
      } else {
        credential = new ManagedIdentityCredential();
      }
      const token = await credential.getToken(resource + "/.default");
      return { token: token.token, expires_on: Math.floor(token.expiresOnTimestamp / 1000) };
    }];
  },
  "msal-node": async () => {
    const { ManagedIdentityApplication } = await import("@azure/msal-node");
    return ["@azure/msal-node", async ({ resource, kind, client_id, resource_id, object_id }) => {
      if (kind === "default") {
        return { unsupported: "MSAL has no DefaultAzureCredential" };
      }
      const managedIdentityIdParams = {};
      if (client_id) managedIdentityIdParams.userAssignedClientId = client_id;
      if (resource_id) managedIdentityIdParams.userAssignedResourceId = resource_id;
      if (object_id) managedIdentityIdParams.userAssignedObjectId = object_id;
      const application = new ManagedIdentityApplication(
        Object.keys(managedIdentityIdParams).length ? { managedIdentityIdParams } : undefined,
      );
      const token = await application.acquireToken({ resource });
      return { token: token.accessToken, expires_on: Math.floor(token.expiresOn.getTime() / 1000) };
    }];
  },
};

const [name, ask] = await clients[process.argv[2]]();
const manifest = new URL(`./node_modules/${name}/package.json`, import.meta.url);
process.stdout.write(JSON.stringify({ version: JSON.parse(readFileSync(manifest)).version }) + "\n");

for await (const line of createInterface({ input: process.stdin })) {
  const begin = performance.now();
  let answer;
  try {
    answer = await ask(JSON.parse(line));
  } catch (error) {
    answer = { error: `${error.name}: ${error.message}` };
  }
  answer.ms = Math.round(performance.now() - begin);
  process.stdout.write(JSON.stringify(answer) + "\n");
}
