// Asks Microsoft's own Go clients for tokens, as an application in a pod would.
//
// Usage: client azidentity|adal
//
// Prints {"version"} when it has started, then one answer a line for every question a line (../python/client.py tells the
// form). Each question is asked with a new credential; the process stays the same.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/go-autorest/autorest/adal"
)

type question struct {
	Resource   string `json:"resource"`
	Kind       string `json:"kind"`
	ClientID   string `json:"client_id"`
	ResourceID string `json:"resource_id"`
	ObjectID   string `json:"object_id"`
}

type answer struct {
	Token       string `json:"token,omitempty"`
	ExpiresOn   int64  `json:"expires_on,omitempty"`
	Error       string `json:"error,omitempty"`
	Unsupported string `json:"unsupported,omitempty"`
	Ms          int64  `json:"ms"`
}

func askAzidentity(q question) (answer, error) {
	var credential azcore.TokenCredential
	var err error
	if q.Kind == "default" {
		credential, err = azidentity.NewDefaultAzureCredential(nil)
	} else {
		options := azidentity.ManagedIdentityCredentialOptions{}
		switch {
		case q.ClientID != "":
			options.ID = azidentity.ClientID(q.ClientID)
		case q.ResourceID != "":
			options.ID = azidentity.ResourceID(q.ResourceID)
		case q.ObjectID != "":
			options.ID = azidentity.ObjectID(q.ObjectID)
		}
		credential, err = azidentity.NewManagedIdentityCredential(&options)
	}
	if err != nil {
		return answer{}, err
	}
	scopes := policy.TokenRequestOptions{Scopes: []string{q.Resource + "/.default"}}
	token, err := credential.GetToken(context.Background(), scopes)
	if err != nil {
		return answer{}, err
	}
	return answer{Token: token.Token, ExpiresOn: token.ExpiresOn.Unix()}, nil
}

func askAdal(q question) (answer, error) {
	if q.Kind == "default" {
		return answer{Unsupported: "adal has no DefaultAzureCredential"}, nil
	}
	if q.ObjectID != "" {
		return answer{Unsupported: "adal has no option for an object id"}, nil
	}
	options := adal.ManagedIdentityOptions{ClientID: q.ClientID, IdentityResourceID: q.ResourceID}
	token, err := adal.NewServicePrincipalTokenFromManagedIdentity(q.Resource, &options)
	if err != nil {
		return answer{}, err
	}
	if err := token.EnsureFresh(); err != nil {
		return answer{}, err
	}
	got := token.Token()
	return answer{Token: got.AccessToken, ExpiresOn: got.Expires().Unix()}, nil
}

func version(module string) string {
	info, _ := debug.ReadBuildInfo()
	for _, dependency := range info.Deps {
		if dependency.Path == module {
			return strings.TrimPrefix(dependency.Version, "v")
		}
	}
	return "unknown"
}

func main() {
	ask, module := askAzidentity, "github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	if len(os.Args) > 1 && os.Args[1] == "adal" {
		ask, module = askAdal, "github.com/Azure/go-autorest/autorest/adal"
	}
	output := json.NewEncoder(os.Stdout)
	_ = output.Encode(map[string]string{"version": version(module)})
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		var q question
		begin := time.Now()
		var a answer
		err := json.Unmarshal(input.Bytes(), &q)
		if err == nil {
			a, err = ask(q)
		}
		if err != nil {
			a = answer{Error: fmt.Sprintf("%T: %v", err, err)}
		}
		a.Ms = time.Since(begin).Milliseconds()
		_ = output.Encode(a)
	}
}
