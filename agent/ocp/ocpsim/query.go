package ocpsim

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

const (
	defaultPageSize = 10
	maxPageSize     = 2000
)

func (s *Sim) taskGet(c *call) answer {
	t, no := s.taskOf(c)
	if no != nil {
		return refuse(no)
	}
	return succeed(s.fullTask(t))
}

func (s *Sim) tasksList(c *call) answer {
	query := c.request.URL.Query()
	wanted, errFilter := taskFilter(query)
	descending, errSort := taskOrder(query)
	if err := errors.Join(errFilter, errSort); err != nil {
		return refuse(illegalArgument(err))
	}
	var found []*task
	for _, t := range s.tasks {
		if wanted(t) {
			found = append(found, t)
		}
	}
	if descending {
		slices.Reverse(found)
	}
	return paged(query, found, s.listedTask)
}

// taskFilter: clusterId, hostId, status (a list), name (fuzzy), type.
func taskFilter(query url.Values) (func(*task) bool, error) {
	clusterID, errCluster := number(query, "clusterId", 0)
	hostID, errHost := number(query, "hostId", 0)
	if err := errors.Join(errCluster, errHost); err != nil {
		return nil, err
	}
	var statuses []string
	for _, value := range query["status"] {
		if value != "" {
			statuses = append(statuses, strings.Split(value, ",")...)
		}
	}
	name, kind := strings.ToLower(query.Get("name")), query.Get("type")
	return func(t *task) bool {
		return (clusterID == 0 || t.cluster.ID == int64(clusterID)) &&
			(hostID == 0 || slices.ContainsFunc(t.servers, func(s *server) bool { return s.HostID == int64(hostID) })) &&
			(len(statuses) == 0 || slices.Contains(statuses, t.status)) &&
			strings.Contains(strings.ToLower(t.name), name) &&
			(kind == "" || kind == taskType)
	}, nil
}

// taskOrder: newest first unless told otherwise. Ids grow with time.
func taskOrder(query url.Values) (descending bool, err error) {
	switch order := query.Get("sort"); order {
	case "", "id", "id,desc":
		return true, nil
	case "id,asc":
		return false, nil
	default:
		return false, fmt.Errorf("sort %q: want id,desc or id,asc", order)
	}
}

// paged is one page of all, as the query asks for it.
func paged[T, B any](query url.Values, all []T, body func(T) B) answer {
	n, errPage := number(query, "page", 1)
	size, errSize := number(query, "size", defaultPageSize)
	if err := errors.Join(errPage, errSize); err != nil {
		return refuse(illegalArgument(err))
	}
	if n < 1 || size < 1 || size > maxPageSize {
		return refuse(illegalArgument(fmt.Errorf("page %d, size %d: want page 1 or more, size 1 to %d", n, size, maxPageSize)))
	}
	info := pageInfo{Number: n, Size: size, TotalElements: len(all), TotalPages: (len(all) + size - 1) / size}
	contents := []B{}
	if n <= info.TotalPages { // also keeps n*size from overflowing
		for _, one := range all[(n-1)*size : min(n*size, len(all))] {
			contents = append(contents, body(one))
		}
	}
	return succeed(page{Contents: contents, Page: &info})
}

// number reads a number from the query, 0 and up.
func number(query url.Values, name string, missing int) (int, error) {
	value := query.Get(name)
	if value == "" {
		return missing, nil
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s %q: want a number", name, value)
	}
	return n, nil
}

func (s *Sim) taskRetry(c *call) answer    { return s.changeTask(c, s.retryTask) }
func (s *Sim) taskRollback(c *call) answer { return s.changeTask(c, s.rollbackTask) }

// changeTask answers the whole task: tasks-retry.json.
func (s *Sim) changeTask(c *call, change func(*task) *problem) answer {
	t, no := s.taskOf(c)
	if no == nil {
		no = change(t)
	}
	if no != nil {
		return refuse(no)
	}
	c.entry.TaskID = t.id
	return succeed(s.fullTask(t))
}

// subtaskRetry answers the subtask (subtasks-retry.json), unlike skip and cancel, which answer nothing.
func (s *Sim) subtaskRetry(c *call) answer {
	var body subtaskBody
	a := s.changeSubtask(c, func(t *task, sub *subtask) *problem {
		no := s.retrySubtask(t, sub)
		body = s.fullSubtask(t, slices.Index(t.subtasks, sub))
		return no
	})
	if a.problem == nil {
		a.data = body
	}
	return a
}

func (s *Sim) subtaskSkip(c *call) answer { return s.changeSubtask(c, s.skipSubtask) }

func (s *Sim) subtaskCancel(c *call) answer {
	return s.changeSubtask(c, func(t *task, sub *subtask) *problem { return s.cancelSubtask(t, sub, c.user.Name) })
}

func (s *Sim) changeSubtask(c *call, change func(*task, *subtask) *problem) answer {
	t, sub, no := s.subtaskOf(c)
	if no == nil {
		no = change(t, sub)
	}
	if no != nil {
		return refuse(no)
	}
	c.entry.TaskID = t.id
	return succeed(nil)
}

func (s *Sim) subtaskLog(c *call) answer {
	t, sub, no := s.subtaskOf(c)
	if no != nil {
		return refuse(no)
	}
	return succeed(struct {
		Log string `json:"log"`
	}{t.logOf(sub)})
}

func (s *Sim) taskOf(c *call) (*task, *problem) {
	if t := s.task(c.pathID("task")); t != nil {
		return t, nil
	}
	return nil, noSuchTask("task", c.request.PathValue("task"))
}

func (s *Sim) subtaskOf(c *call) (*task, *subtask, *problem) {
	t, no := s.taskOf(c)
	if no != nil {
		return nil, nil, no
	}
	if sub := t.subtask(c.pathID("subtask")); sub != nil {
		return t, sub, nil
	}
	return nil, nil, noSuchTask("subtask", c.request.PathValue("subtask"))
}

func (s *Sim) clustersList(c *call) answer {
	query := c.request.URL.Query()
	var found []*cluster
	for _, cl := range s.clusters {
		if strings.Contains(cl.Name, query.Get("name")) && cmp.Or(query.Get("status"), cl.status) == cl.status {
			found = append(found, cl)
		}
	}
	return paged(query, found, func(cl *cluster) clusterBody { return s.clusterBody(cl, c.request.Host) })
}

func (s *Sim) zonesList(c *call) answer {
	cl := s.cluster(c.cluster)
	if cl == nil {
		return refuse(notFound("cluster", c.request.PathValue("cluster")))
	}
	contents := []zoneBody{}
	for _, z := range cl.zones {
		contents = append(contents, s.zoneBody(cl, z))
	}
	return succeed(page{Contents: contents})
}

func (s *Sim) serversList(c *call) answer {
	cl := s.cluster(c.cluster)
	if cl == nil {
		return refuse(notFound("cluster", c.request.PathValue("cluster")))
	}
	return succeed(page{Contents: s.serverBodies(cl, cl.servers())})
}

func (s *Sim) zoneServersList(c *call) answer {
	cl := s.cluster(c.cluster)
	if cl == nil {
		return refuse(notFound("cluster", c.request.PathValue("cluster")))
	}
	z := cl.zone(c.request.PathValue("zone"))
	if z == nil {
		return refuse(notFound("zone", c.request.PathValue("zone")))
	}
	return succeed(page{Contents: s.serverBodies(cl, z.servers)})
}

func (s *Sim) serverBodies(cl *cluster, servers []*server) []serverBody {
	bodies := []serverBody{}
	for _, srv := range servers {
		bodies = append(bodies, s.serverBody(cl, srv))
	}
	return bodies
}

// info is application-info.json, the one JSON without an envelope.
func (s *Sim) info(*call) answer {
	version := "3.3.0-20230331"
	if s.cfg.API == APIV43 {
		version = "4.3.5-20250320"
	}
	return answer{status: http.StatusOK, bare: struct {
		Artifact          string `json:"artifact"`
		BuildVersion      string `json:"buildVersion"`
		BuildJavaVersion  string `json:"buildJavaVersion"`
		BuildTime         string `json:"buildTime"`
		Name              string `json:"name"`
		SpringBootVersion string `json:"springBootVersion"`
		Group             string `json:"group"`
	}{"ocp-server", version, "1.8", "2023-03-31T05:43:31.644+08:00", "ocp-server", "2.2.5.RELEASE", "com.oceanbase"}}
}
