// Package kubernetes tests the manifests in this directory offline, with what an
// API server does to them: it decodes them strictly, fills in defaults, validates,
// and judges them by the Pod Security Standards.
package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	podapi "k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/apps"
	_ "k8s.io/kubernetes/pkg/apis/apps/install" // the scheme's types
	appsvalidation "k8s.io/kubernetes/pkg/apis/apps/validation"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install" // the scheme's types
	"k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	strictjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// manifests are the files, each with how an API server comes to see it.
var manifests = map[string]func(text string) error{
	"debug.yaml":         checkDebug,
	"sidecar.yaml":       checkObjects,
	"daemonset.yaml":     checkObjects,
	"daemonset-cri.yaml": checkPatch,
	"podmonitor.yaml":    checkPodMonitor,
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestAnAPIServerTakesTheManifests(t *testing.T) {
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if name := file.Name(); strings.HasSuffix(name, ".yaml") && manifests[name] == nil {
			t.Errorf("%s is not tested", name)
		}
	}
	for name, check := range manifests {
		if err := check(read(t, name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Each fault in a manifest is found: the test above can fail.
func TestBrokenManifestsAreRefused(t *testing.T) {
	for _, broken := range []struct{ file, old, new, want string }{
		{"debug.yaml", "  readOnlyRootFilesystem: true\n", "  readOnlyRootFileSystem: true\n", `unknown field "securityContext.readOnlyRootFileSystem"`},
		{"debug.yaml", "  readOnlyRootFilesystem: true\n", "", "readOnlyRootFilesystem"},
		{"debug.yaml", "securityContext:\n", "resources: {limits: {cpu: 1}}\nsecurityContext:\n", "resources"},
		{"debug.yaml", "securityContext:\n", "image: tcptrace\nsecurityContext:\n", "image"},
		{"debug.yaml", "runAsNonRoot: false", "runAsNonRoot: true", "runAsNonRoot"},
		{"debug.yaml", "    drop: [ALL]\n", "", "drop ALL"},
		{"debug.yaml", "type: RuntimeDefault", "type: Unconfined", "seccompProfile"},
		{"debug.yaml", "allowPrivilegeEscalation: false", "privileged: true", "privileged"},
		{"sidecar.yaml", "kind: Pod", "kind: Pot", `no kind "Pot"`},
		{"sidecar.yaml", "restartPolicy: Always", "restartPolicy: Sometimes", "restartPolicy"},
		{"sidecar.yaml", "automountServiceAccountToken: false", "automountServiceAccountToken: true", "automountServiceAccountToken"},
		{"sidecar.yaml", "limits: {cpu: 500m, memory: 256Mi}", "limits: {cpu: 500m, memory: 32Mi}", "must be less than or equal to memory limit"},
		{"sidecar.yaml", "limits: {cpu: 500m, memory: 256Mi}", "limits: {cpu: 500m}", "memory limit"},
		{"sidecar.yaml", "shareProcessNamespace: true", "shareProcessNamespace: true\n  hostNetwork: true", "host namespaces"},
		{"daemonset.yaml", "port: metrics", "port: metric_s", "port"},
		{"daemonset.yaml", "      app.kubernetes.io/name: tcptrace\n  template", "      app.kubernetes.io/name: other\n  template", "selector"},
		{"daemonset.yaml", "enforce: privileged", "enforce: baseline", "enforce"},
		{"daemonset.yaml", "hostPID: true", "hostIPC: true\n      hostPID: false", "hostPID"},
		{"daemonset.yaml", "Baseline forbids: host namespaces, ", "Baseline forbids: ", "its comment says: non-default capabilities"},
		{"podmonitor.yaml", "jobLabel", "job", `unknown field "spec.job"`},
		{"podmonitor.yaml", "kind: PodMonitor", "kind: ServiceMonitor", "kind"},
		{"podmonitor.yaml", "app.kubernetes.io/name: tcptrace", "app: tcptrace", "selects none of the pods"},
		{"podmonitor.yaml", "port: metrics", "port: http", "no port http"},
		{"podmonitor.yaml", "jobLabel: app.kubernetes.io/name", "jobLabel: app", "the job is not tcptrace"},
		{"podmonitor.yaml", "namespace: tcptrace", "namespace: default", "namespace"},
		{"daemonset-cri.yaml", "type: Directory", "type: Plug", "hostPath.type"},
		{"daemonset-cri.yaml", "- name: cri\n              mountPath", "- name: cry\n              mountPath", "cry"},
	} {
		text := read(t, broken.file)
		changed := strings.Replace(text, broken.old, broken.new, 1)
		if changed == text {
			t.Errorf("%s: no %q in it to break", broken.file, broken.old)
			continue
		}
		err := manifests[broken.file](changed)
		if err == nil || !strings.Contains(err.Error(), broken.want) {
			t.Errorf("%s with %q instead of %q: %v, want an error about %s", broken.file, broken.new, broken.old, err, broken.want)
		}
	}
}

// decode does what an API server does to the body of a request.
func decode(text []byte) (runtime.Object, error) {
	strict := serializer.NewCodecFactory(legacyscheme.Scheme, serializer.EnableStrict)
	return runtime.Decode(strict.UniversalDecoder(), text)
}

// checkObjects checks a file of whole objects.
func checkObjects(text string) error {
	for document := range strings.SplitSeq(text, "\n---\n") {
		if err := checkObject([]byte(document), text); err != nil {
			return err
		}
	}
	return nil
}

func checkObject(document []byte, text string) error {
	object, err := decode(document)
	if err != nil {
		return err
	}
	switch object := object.(type) {
	case *core.Namespace:
		if got := object.Labels[api.EnforceLevelLabel]; got != string(api.LevelPrivileged) {
			return fmt.Errorf("namespace %s: %s=%s would refuse the pods", object.Name, api.EnforceLevelLabel, got)
		}
		return validation.ValidateNamespace(object).ToAggregate()
	case *core.Pod:
		object.Namespace = metav1.NamespaceDefault // as kubectl fills it in
		opts := podapi.GetValidationOptionsFromPodSpecAndMeta(&object.Spec, nil, &object.ObjectMeta, nil)
		if err := validation.ValidatePodCreate(object, opts).ToAggregate(); err != nil {
			return err
		}
		return checkPrivilege(&object.Spec, text)
	case *apps.DaemonSet:
		opts := podapi.GetValidationOptionsFromPodTemplate(&object.Spec.Template, nil)
		if err := appsvalidation.ValidateDaemonSet(object, opts).ToAggregate(); err != nil {
			return err
		}
		if !object.Spec.Template.Spec.SecurityContext.HostPID {
			return errors.New("without hostPID it sees no process but itself")
		}
		return checkPrivilege(&object.Spec.Template.Spec, text)
	}
	return fmt.Errorf("a %T", object)
}

// checkPodMonitor checks that it finds the pods of the DaemonSet, and what the operator would
// refuse.
func checkPodMonitor(text string) error {
	asJSON, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return err
	}
	var monitor monitoringv1.PodMonitor
	unknown, err := strictjson.UnmarshalStrict(asJSON, &monitor)
	if err := errors.Join(append(unknown, err)...); err != nil {
		return err
	}
	if kind := monitor.GroupVersionKind(); kind != monitoringv1.SchemeGroupVersion.WithKind(monitoringv1.PodMonitorsKind) {
		return fmt.Errorf("is of kind %s", kind)
	}
	documents, err := os.ReadFile("daemonset.yaml")
	if err != nil {
		return err
	}
	_, document, _ := strings.Cut(string(documents), "\n---\n")
	object, err := decode([]byte(document))
	if err != nil {
		return err
	}
	set := object.(*apps.DaemonSet)
	if monitor.Namespace != set.Namespace {
		return fmt.Errorf("namespace %s, and the pods are in %s", monitor.Namespace, set.Namespace)
	}
	selector, err := metav1.LabelSelectorAsSelector(&monitor.Spec.Selector)
	if err != nil {
		return err
	}
	if !selector.Matches(labels.Set(set.Spec.Template.Labels)) {
		return errors.New("selects none of the pods")
	}
	if job := set.Spec.Template.Labels[monitor.Spec.JobLabel]; job != "tcptrace" {
		return fmt.Errorf("the job is not tcptrace but %q", job)
	}
	for _, endpoint := range monitor.Spec.PodMetricsEndpoints {
		if endpoint.Port == nil {
			return errors.New("an endpoint without a port")
		}
		if !slices.ContainsFunc(set.Spec.Template.Spec.Containers[0].Ports, func(p core.ContainerPort) bool { return p.Name == *endpoint.Port }) {
			return fmt.Errorf("no port %s", *endpoint.Port)
		}
	}
	return nil
}

// checkPatch checks what kubectl patch makes of the DaemonSet.
func checkPatch(text string) error {
	documents, err := os.ReadFile("daemonset.yaml")
	if err != nil {
		return err
	}
	_, original, found := strings.Cut(string(documents), "\n---\n")
	if !found {
		return errors.New("daemonset.yaml has no second document")
	}
	patched, err := patch([]byte(original), []byte(text), appsv1.DaemonSet{})
	if err != nil {
		return err
	}
	return checkObject(patched, text)
}

// patch applies a strategic merge patch. Both are YAML; the result is JSON.
func patch(original, change []byte, kind any) ([]byte, error) {
	original, err := yaml.YAMLToJSONStrict(original)
	if err != nil {
		return nil, err
	}
	if change, err = yaml.YAMLToJSONStrict(change); err != nil {
		return nil, err
	}
	return strategicpatch.StrategicMergePatch(original, change, kind)
}

// A pod as wary as can be: what the debug container needs, it has to say itself.
const target = `
apiVersion: v1
kind: Pod
metadata: {name: app, namespace: default, resourceVersion: "1"}
spec:
  securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: app
      image: app
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
`

// checkDebug checks the ephemeral container that kubectl debug --profile=general
// --custom makes of it.
func checkDebug(text string) error {
	var custom corev1.Container
	asJSON, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return err
	}
	unknown, err := strictjson.UnmarshalStrict(asJSON, &custom)
	if err := errors.Join(append(unknown, err)...); err != nil {
		return err
	}
	if custom.Name != "" || custom.Image != "" || len(custom.Command) > 0 || custom.Lifecycle != nil || len(custom.VolumeDevices) > 0 {
		return errors.New("kubectl refuses name, command, image, lifecycle and volume devices")
	}
	before, err := decode([]byte(target))
	if err != nil {
		return err
	}
	debugger := corev1.EphemeralContainer{TargetContainerName: "app", EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		Name: "debugger", Image: "tcptrace", Stdin: true, TTY: true, TerminationMessagePolicy: corev1.TerminationMessageReadFile,
		SecurityContext: &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_PTRACE"}}}, // the profile's
	}}
	container, err := json.Marshal(debugger)
	if err != nil {
		return err
	}
	custom.Name = debugger.Name
	change, err := json.Marshal(custom)
	if err != nil {
		return err
	}
	if container, err = patch(container, change, corev1.Container{}); err != nil {
		return err
	}
	pod, err := patch([]byte(target), fmt.Appendf(nil, `{"spec": {"ephemeralContainers": [%s]}}`, container), corev1.Pod{})
	if err != nil {
		return err
	}
	object, err := decode(pod)
	if err != nil {
		return err
	}
	after := object.(*core.Pod)
	opts := podapi.GetValidationOptionsFromPodSpecAndMeta(&after.Spec, nil, &after.ObjectMeta, nil)
	if err := validation.ValidatePodEphemeralContainersUpdate(after, before.(*core.Pod), opts).ToAggregate(); err != nil {
		return err
	}
	after.Spec.AutomountServiceAccountToken = new(bool) // is the target's
	return checkPrivilege(&after.Spec, text)
}

// forbidden returns what a level of the Pod Security Standards holds against a pod.
func forbidden(level api.Level, spec *corev1.PodSpec) ([]string, error) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		return nil, err
	}
	against := policy.AggregateCheckResults(evaluator.EvaluatePod(api.LevelVersion{Level: level, Version: api.LatestVersion()}, &metav1.ObjectMeta{}, spec))
	slices.Sort(against.ForbiddenReasons)
	return against.ForbiddenReasons, nil
}

var comment = regexp.MustCompile(`(?m)^# Baseline forbids: (.*)\.\n# Restricted forbids: (.*)\.$`)

// checkPrivilege checks that the pod asks for what its comment says, and for no
// more: what Pod Security does not look at, here.
func checkPrivilege(internal *core.PodSpec, text string) error {
	var spec corev1.PodSpec
	if err := legacyscheme.Scheme.Convert(internal, &spec, nil); err != nil {
		return err
	}
	said := comment.FindStringSubmatch(text)
	if said == nil {
		return errors.New("no comment says what Pod Security holds against it")
	}
	for i, level := range []api.Level{api.LevelBaseline, api.LevelRestricted} {
		against, err := forbidden(level, &spec)
		if err != nil {
			return err
		}
		if got := strings.Join(against, ", "); got != said[i+1] {
			return fmt.Errorf("%s forbids: %s; its comment says: %s", level, got, said[i+1])
		}
	}
	if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken {
		return errors.New("automountServiceAccountToken is not false")
	}
	containers := slices.Concat(spec.InitContainers, spec.Containers)
	for _, c := range spec.EphemeralContainers {
		containers = append(containers, corev1.Container(c.EphemeralContainerCommon))
	}
	tested := 0
	for _, c := range containers {
		if c.Image != "tcptrace" {
			continue
		}
		tested++
		if c.SecurityContext.ReadOnlyRootFilesystem == nil || !*c.SecurityContext.ReadOnlyRootFilesystem {
			return errors.New("readOnlyRootFilesystem is not true")
		}
		// Pod Security does not tell this from capabilities that are added.
		if !slices.Equal(c.SecurityContext.Capabilities.Drop, []corev1.Capability{"ALL"}) {
			return errors.New("it does not drop ALL capabilities")
		}
		if len(spec.EphemeralContainers) == 0 && (c.Resources.Limits.Memory().IsZero() || c.Resources.Limits.Cpu().IsZero()) {
			return errors.New("no cpu or memory limit")
		}
	}
	if tested != 1 {
		return fmt.Errorf("%d containers run tcptrace, want 1", tested)
	}
	return nil
}
