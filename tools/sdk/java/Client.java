import com.azure.core.credential.AccessToken;
import com.azure.core.credential.TokenCredential;
import com.azure.core.credential.TokenRequestContext;
import com.azure.identity.DefaultAzureCredentialBuilder;
import com.azure.identity.ManagedIdentityCredentialBuilder;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import com.microsoft.aad.msal4j.IAuthenticationResult;
import com.microsoft.aad.msal4j.ManagedIdentityApplication;
import com.microsoft.aad.msal4j.ManagedIdentityId;
import com.microsoft.aad.msal4j.ManagedIdentityParameters;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.ExecutionException;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Asks Microsoft's own Java clients for tokens, as an application in a pod would.
 *
 * <p>Usage: Client azure-identity|msal4j
 *
 * <p>Prints {"version"} when it has started, then one answer a line for every question a line (../python/client.py tells the
 * form). Each question is asked with a new credential; the process stays the same.
 */
public final class Client {
    private static final ObjectMapper JSON = new ObjectMapper();

    private Client() {}

    private static ObjectNode azureIdentity(JsonNode question) {
        TokenCredential credential;
        if ("default".equals(text(question, "kind"))) {
            credential = new DefaultAzureCredentialBuilder().build();
        } else {
            ManagedIdentityCredentialBuilder builder = new ManagedIdentityCredentialBuilder();
            if (text(question, "client_id") != null) {
                builder.clientId(text(question, "client_id"));
            } else if (text(question, "resource_id") != null) {
                builder.resourceId(text(question, "resource_id"));
            } else if (text(question, "object_id") != null) {
                builder.objectId(text(question, "object_id"));
            }
            credential = builder.build();
        }
        String scope = text(question, "resource") + "/.default";
        AccessToken token = credential.getTokenSync(new TokenRequestContext().addScopes(scope));
        return JSON.createObjectNode().put("token", token.getToken()).put("expires_on", token.getExpiresAt().toEpochSecond());
    }

    private static ObjectNode msal4j(JsonNode question) throws Exception {
        if ("default".equals(text(question, "kind"))) {
            return JSON.createObjectNode().put("unsupported", "MSAL has no DefaultAzureCredential");
        }
        ManagedIdentityId id;
        if (text(question, "client_id") != null) {
            id = ManagedIdentityId.userAssignedClientId(text(question, "client_id"));
        } else if (text(question, "resource_id") != null) {
            id = ManagedIdentityId.userAssignedResourceId(text(question, "resource_id"));
        } else if (text(question, "object_id") != null) {
            id = ManagedIdentityId.userAssignedObjectId(text(question, "object_id"));
        } else {
            id = ManagedIdentityId.systemAssigned();
        }
        ManagedIdentityApplication application = ManagedIdentityApplication.builder(id).build();
        ManagedIdentityParameters parameters = ManagedIdentityParameters.builder(text(question, "resource")).build();
        IAuthenticationResult token = application.acquireTokenForManagedIdentity(parameters).get();
        return JSON.createObjectNode()
                .put("token", token.accessToken())
                .put("expires_on", token.expiresOnDate().getTime() / 1000);
    }

    private static String text(JsonNode node, String name) {
        JsonNode value = node.get(name);
        return value == null || value.isNull() || value.asText().isEmpty() ? null : value.asText();
    }

    /** The version in the name of the jar that a class comes from. */
    private static String version(Class<?> of) {
        String jar = of.getProtectionDomain().getCodeSource().getLocation().getPath();
        Matcher matcher = Pattern.compile("-([0-9][^/]*)\\.jar$").matcher(jar);
        return matcher.find() ? matcher.group(1) : "unknown";
    }

    public static void main(String[] arguments) throws Exception {
        boolean msal = "msal4j".equals(arguments[0]);
        PrintStream output = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        Class<?> client = msal ? ManagedIdentityApplication.class : ManagedIdentityCredentialBuilder.class;
        output.println(JSON.createObjectNode().put("version", version(client)));
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            long begin = System.nanoTime();
            ObjectNode answer;
            try {
                JsonNode question = JSON.readTree(line);
                answer = msal ? msal4j(question) : azureIdentity(question);
            } catch (ExecutionException error) {
                answer = failure(error.getCause());
            } catch (Exception error) {
                answer = failure(error);
            }
            answer.put("ms", (System.nanoTime() - begin) / 1_000_000);
            output.println(answer);
        }
        // Both clients keep threads that would keep the process.
        System.exit(0);
    }

    private static ObjectNode failure(Throwable error) {
        StringBuilder text = new StringBuilder(error.getClass().getSimpleName() + ": " + error.getMessage());
        // An application logs the causes, too.
        for (Throwable cause = error.getCause(); cause != null; cause = cause.getCause()) {
            text.append("; caused by ").append(cause.getClass().getSimpleName()).append(": ").append(cause.getMessage());
        }
        return JSON.createObjectNode().put("error", text.toString());
    }
}
